"""What is kept of the traffic that came: files in the data folder, written beside serving and read by the commands."""
