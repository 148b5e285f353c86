"""The book built by plain Sphinx, without Jupyter Book: insurance for the day Jupyter Book 1 no longer installs."""
