"""Block-wise activation capture and the statistics that methods ask for."""
