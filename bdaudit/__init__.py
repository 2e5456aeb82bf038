"""bdaudit: is the backdoor in a cleaned model gone, or only asleep?"""
