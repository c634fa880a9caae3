"""What a person looks at: the report, and the picture behind one clip's scores."""
