"""Study folders: what is in them, copies at a URI, hours used."""
