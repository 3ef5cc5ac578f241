"""``biaswise study ...``: run a study, screen it, report on it, send it to MLflow."""
