"""What a run leaves on disk: the lines of its files, its directory, and the file operations that both use."""
