"""Compiled kernels: arrays in, arrays out. Private; import the estimators instead."""
