"""How fast the platform is, as ratios to bare floors measured side by side in one run: see README.md."""
