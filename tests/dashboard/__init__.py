"""The dashboard on real data, as a page and a picture: `make dashboard`."""
