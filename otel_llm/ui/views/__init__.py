"""One module for each page: what it asks, and what its template and its JSON get of the answer."""
