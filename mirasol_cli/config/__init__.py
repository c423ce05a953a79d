"""Recipes: every key (`schema`), strict reading (`reader`, `yaml`), and the folders that follow from them (`paths`)."""
