"""The experiments of Part IV: parts, recipes and measures of the claims that need trainings."""
