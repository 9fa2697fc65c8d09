"""What a step costs on this machine, beside what one writes without this package."""
