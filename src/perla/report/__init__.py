"""`perla report`: runs, comparisons and reproductions as one page that needs no network."""
