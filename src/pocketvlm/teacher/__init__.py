"""The labelling model: what it is asked, how, what it costs, and what it said."""
