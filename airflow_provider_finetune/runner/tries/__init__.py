"""What the tries of one training leave on disk, what the next one goes on from, and what stays in the end."""
