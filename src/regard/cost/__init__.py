"""The analytic cost model, pure Python: what a layer or a model costs, without building it."""
