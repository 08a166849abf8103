"""Regularised networks: sharper and better?"""
