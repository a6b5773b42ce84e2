"""Prove that a layer behaves: what scikit-learn's ``check_estimator`` is to estimators."""
