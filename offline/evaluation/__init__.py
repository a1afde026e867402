"""Methods side by side on the same prompts: speed, acceptance, exactness."""
