"""Mutation testing: is what decides who gets a key held by tests in every line?"""
