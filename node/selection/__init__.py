"""Which adapters should answer a query: embeddings, profiles, the rule that decides, and when to answer without any."""
