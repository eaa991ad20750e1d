"""What a user names in, entries to plan out: folders, lists, tables, tars, saved data sets, here or in other stores."""
