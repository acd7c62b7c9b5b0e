"""The one model class that builds any spec, and its parts."""
