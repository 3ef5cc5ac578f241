"""One trial: data in, detector trained under one plan, rows out."""
