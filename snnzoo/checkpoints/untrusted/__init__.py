"""Files that nobody vouches for: checked on paper before anything of them is loaded or allocated."""
