"""The analytic cost model: what a forward takes, from a model's sizes and a machine's data sheet."""
