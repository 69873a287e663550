"""A classifier's head, trained whole beside a method."""
