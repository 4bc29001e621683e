"""Images of results and figures: legends, overlays, sheets, charts."""
