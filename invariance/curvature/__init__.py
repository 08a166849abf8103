"""Second derivatives: exact where exactness exists, certified where it does not."""
