"""What is known of a flash store on this machine, as one page."""
