"""Decoder, attention of a site, position encodings."""
