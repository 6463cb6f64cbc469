"""What an attacker could get: attacks on models and updates, for the site's own eyes."""
