"""Query weights (AQR), their projection, and the attention bias made from them."""
