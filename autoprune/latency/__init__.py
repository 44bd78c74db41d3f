"""Latency: measured networks, tables of measured pieces, and costs made of them."""
