"""Private: losses as what curvature needs of them. A new loss goes here."""
