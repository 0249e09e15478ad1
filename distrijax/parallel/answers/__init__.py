"""The kinds of answers to a layer's three questions.

An answer states its costs. It `waits` if it needs values that other devices compute in the same step, `carries` if it
needs values of the previous step, which the scan then carries along, `predicts` if it needs those of the step before
that as well, and `sends` if it needs messages every step. Carried values are sent at the start of a step, before the
first layer, so that nothing waits for them.
"""
