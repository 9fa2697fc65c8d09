"""What is to be known of clips before they are decoded."""
