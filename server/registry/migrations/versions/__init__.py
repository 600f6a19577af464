"""The revisions; none is ever changed once released."""
