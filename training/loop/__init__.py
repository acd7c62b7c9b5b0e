"""One run: a recipe, a budget, a start, a loop that resumes to the bit."""
