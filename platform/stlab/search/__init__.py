"""Searches by Optuna, whose sole importer this is. The trial directories are the truth; an Optuna study is rebuilt from them."""
