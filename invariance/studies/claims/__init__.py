"""Private: claims, their regions, and the statistics that judge them."""
