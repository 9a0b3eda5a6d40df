"""The lab: research questions as runnable experiments with an honest answer. Imports from every room but the doors."""
