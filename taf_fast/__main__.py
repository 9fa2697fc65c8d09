from taf_fast.cli import main

main()
