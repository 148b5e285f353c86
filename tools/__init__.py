"""Commands behind the Makefile: bootstrap, execution of notebooks, the site, and its checks."""
