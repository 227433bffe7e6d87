"""Before against after: trials, intervals, and the pages that show them."""
