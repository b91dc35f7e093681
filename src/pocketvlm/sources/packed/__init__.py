"""Archives, read member by member and never unpacked."""
