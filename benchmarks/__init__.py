"""What authentication costs, beside a view without it and beside the usual alternatives."""
