"""The promotion: a challenger becomes champion when the evidence says so."""
