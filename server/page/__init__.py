"""The page that shows drafts: static files, and how they are served."""
