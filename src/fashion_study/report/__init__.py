"""The report: a study on one page of HTML that needs no server."""
