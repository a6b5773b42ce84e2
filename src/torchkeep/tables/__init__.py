"""Looking at the parameters of a model, a state_dict or a file: tables, statistics, rules over parameters."""
